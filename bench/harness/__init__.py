"""The side-by-side bench of data planes: processes, peers, load, report."""
