"""What a network can be trained for, one file each."""
