"""What meters and agents say, asked of Prometheus."""
