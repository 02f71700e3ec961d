"""Training that survives: from a folder's last sound checkpoint to the last step, whatever happens."""
