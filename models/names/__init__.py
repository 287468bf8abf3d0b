"""What other formats call the models' parameters and sizes: one module of data for each architecture."""
