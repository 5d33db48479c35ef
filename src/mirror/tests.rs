//! Behaviour of the mirror.
