"""The members of the family, one a file: arguments and what they mean."""
