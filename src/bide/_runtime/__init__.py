"""What works behind a client."""
