"""A hospital's side: its data, guard, ledger, Flower ClientApp and scoring. The only room that opens an image."""
