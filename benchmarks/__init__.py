"""Programs that measure the product and write the pages of results."""
