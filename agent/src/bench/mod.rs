//! `agent bench`: figures with a baseline from the same run, since machines are noisy and only ratios
//! travel.

mod baseline;
pub mod link;
mod process;
