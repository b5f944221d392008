//! The only door outside: clock, dice, sockets, tasks, drain, logging, the metrics catalogue.
