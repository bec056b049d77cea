//! Connections of the agent to its own server: one for each account.

use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use nats_config::names;

use super::BrokerError;

/// Connects as `user`. The connection lives until it is dropped, whatever the server does meanwhile.
pub async fn connect(
    address: impl async_nats::ToServerAddrs + std::fmt::Debug,
    user: &str,
    password: &str,
    name: &str,
) -> Result<Client, BrokerError> {
    let label = name.to_owned();
    let shown = format!("{address:?}");
    ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        .name(format!("lucent agent {name}"))
        .custom_inbox_prefix(names::AGENT_INBOX)
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(5))
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| Duration::from_millis((50 * attempts as u64).min(1000)))
        .ignore_discovered_servers()
        .subscription_capacity(16 * 1024)
        .client_capacity(1024)
        .event_callback(move |event| {
            let connection = label.clone();
            async move {
                match event {
                    Event::Connected => tracing::debug!(connection, "connected to the own nats-server"),
                    Event::Disconnected => tracing::warn!(connection, "lost the own nats-server"),
                    other => tracing::debug!(connection, event = %other, "connection event"),
                }
            }
        })
        .connect(address)
        .await
        .map_err(|error| BrokerError::Connect {
            address: shown,
            user: user.to_owned(),
            reason: error.to_string(),
        })
}
