"""What one watched forward pass says of a model: its calls, layers and sites; and how to run it unnoticed."""
