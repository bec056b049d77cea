//! What an agent says over HTTP.

use std::{net::SocketAddr, time::Duration};

/// The status code and body of a page of an agent; `None` where nothing answers.
pub async fn get(http: SocketAddr, page: &str) -> Option<(u16, String)> {
    let url = format!("http://{http}{page}");
    let ask = move || {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs(5)))
            .http_status_as_error(false)
            .build();
        let mut response = config.new_agent().get(url).call().ok()?;
        let code = response.status().as_u16();
        Some((code, response.body_mut().read_to_string().ok()?))
    };
    tokio::task::spawn_blocking(ask).await.ok().flatten()
}

/// The numbers of `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Numbers(String);

impl Numbers {
    /// Those of the agent at this address; none where it does not answer.
    pub async fn of(http: SocketAddr) -> Numbers {
        Numbers(get(http, "/metrics").await.map(|(_, text)| text).unwrap_or_default())
    }

    /// The value of a metric as it stands on the page, labels included; 0 where it is absent.
    pub fn value(&self, metric: &str) -> f64 {
        let value = |line: &str| line.strip_prefix(metric)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(value).unwrap_or(0.0)
    }

    /// How many messages were refused for this reason.
    pub fn refused(&self, reason: &str) -> u64 {
        self.value(&format!("lucent_refused_total{{reason=\"{reason}\"}}")) as u64
    }

    /// The page.
    pub fn text(&self) -> &str {
        &self.0
    }
}
