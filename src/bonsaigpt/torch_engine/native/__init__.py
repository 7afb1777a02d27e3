"""The decoding step in C++: built on first use by whatever compiler the machine has, kept in the user's cache."""
