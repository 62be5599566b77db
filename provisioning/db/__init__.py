"""Tables, reads and writes. SQLModel declares, SQLAlchemy Core states; a row goes nowhere else."""
