"""One module per data set: from its published layout to manifest items."""
