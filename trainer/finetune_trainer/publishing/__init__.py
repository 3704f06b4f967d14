"""The result's place: who may write there, what is written, and the record that makes it a result."""
