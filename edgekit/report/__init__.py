"""What people look at: a bundle's page, and several reports side by side. Host side."""
