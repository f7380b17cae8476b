"""Write folders and files for a user: whole or not at all, and never over what qdqpatch did not write."""
