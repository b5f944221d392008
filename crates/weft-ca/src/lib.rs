//! Issues: templates, slots, journal, validation after signing.
