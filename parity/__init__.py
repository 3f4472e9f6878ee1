"""The proof: judges a port of the reference from pixel to accuracy trend, and says where and why it is wrong."""
