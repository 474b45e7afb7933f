"""How moments and 16-bit parameters are kept between steps."""
