"""What services meet: each fault on real servers, under load, by counts."""
