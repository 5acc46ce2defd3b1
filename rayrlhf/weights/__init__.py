"""Policy versions on the move: the bucket layout, the byte codec with checksums, and the all-or-nothing update."""
