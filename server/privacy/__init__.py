"""What a privacy budget means for a federation, before anything is trained."""
