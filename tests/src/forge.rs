//! Impostors.
