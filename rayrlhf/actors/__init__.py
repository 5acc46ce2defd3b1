"""Where things run: thin Ray shells around the plain classes below, and the driver's view of them as pools."""
