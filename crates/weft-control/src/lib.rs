//! Registry shell, resource API, admission, publisher, workload API.
