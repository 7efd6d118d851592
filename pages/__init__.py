"""What both dashboards share: an application that is closed by default, its look, and what keeps its pages live."""
