"""What the rules of one family share: their base class, and the maths under it."""
