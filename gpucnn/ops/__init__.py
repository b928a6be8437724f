"""Operations on tensors.  One op, one file."""
