"""Which loss, by how much, how sure: from the tables of finished runs to a report."""
