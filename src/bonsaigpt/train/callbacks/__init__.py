"""What may listen to the loop; one file each."""
