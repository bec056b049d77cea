//! Waiting for something to become true, without guessing how long it takes.

use std::{fmt::Debug, time::Duration};

/// How often a condition is looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Evaluates an expression of type `Result<T, impl Display>` again and again until it is `Ok`; its value.
/// The expression may await. Panics with the last error once `within` has passed.
#[macro_export]
macro_rules! eventually {
    ($within:expr, $attempt:expr) => {{
        let deadline = ::tokio::time::Instant::now() + $within;
        loop {
            match $attempt {
                Ok(value) => break value,
                Err(seen) if ::tokio::time::Instant::now() >= deadline => {
                    panic!("not within {:?}: {}\nlast seen: {seen}", $within, stringify!($attempt))
                }
                Err(_) => ::tokio::time::sleep($crate::eventually::LOOK_EVERY).await,
            }
        }
    }};
}

/// `Ok` where the condition holds, else what was seen: for [`eventually!`](crate::eventually!).
pub fn when(condition: bool, seen: impl Debug) -> Result<(), String> {
    if condition { Ok(()) } else { Err(format!("{seen:#?}")) }
}
