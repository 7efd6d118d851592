"""How the model learns at a site: pure PyTorch that knows no Flower, file, socket or database."""
