//! Reference decoding.
