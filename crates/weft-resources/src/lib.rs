//! What operators write, one directory per kind, compiled into fragments.
