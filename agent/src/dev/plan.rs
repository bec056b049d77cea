//! From a list of paths to directories, identities, ports and configuration files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path as FilePath, PathBuf},
};

use hierarchy::{Level, Path};

use super::{fleet::FleetError, identities::DevAuthority};
use crate::broker::{self, BrokerError};

/// A mesh that can be started.
pub struct Plan {
    /// Its agents, parents before children.
    pub agents: Vec<PlannedAgent>,
    /// Who issued their identities.
    pub authority: DevAuthority,
}

/// One agent of it.
#[derive(Debug, Clone)]
pub struct PlannedAgent {
    /// Where it stands.
    pub path: Path,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its state directory.
    pub state: PathBuf,
}

impl Plan {
    /// Lays out `paths`, which must hold every parent of each, below `dir`. `extra` may add sections to
    /// an agent's configuration.
    pub fn lay_out(
        dir: &FilePath,
        paths: &[Path],
        mut extra: impl FnMut(&Path, &mut String),
    ) -> Result<Plan, FleetError> {
        let authority = DevAuthority::new().map_err(|error| FleetError::Plan(error.to_string()))?;
        let mut paths = paths.to_vec();
        paths.sort_by_key(|path| (path.segments().len(), path.clone()));
        let mut ports = Ports::default();
        let mut leaf_ports: BTreeMap<Path, SocketAddr> = BTreeMap::new();
        for path in paths.iter().filter(|path| path.level() != Level::Node) {
            leaf_ports.insert(path.clone(), ports.choose("leaf.listen")?);
        }
        let mut agents = Vec::new();
        for path in &paths {
            let home = dir.join(path.to_string().replace('/', "."));
            let unwritable = |error: std::io::Error| FleetError::Plan(format!("{}: {error}", home.display()));
            let svid = authority.issue(path).map_err(|error| FleetError::Plan(error.to_string()))?;
            svid.write(&home.join("identity")).map_err(unwritable)?;
            let nats = [ports.choose("nats.listen")?, ports.choose("nats.monitor")?];
            let mut text = base_config(path, &paths, &leaf_ports, nats);
            extra(path, &mut text);
            let agent = PlannedAgent {
                path: path.clone(),
                config: home.join("agent.toml"),
                state: home.join("state"),
            };
            fs::write(&agent.config, text).map_err(unwritable)?;
            agents.push(agent);
        }
        Ok(Plan { agents, authority })
    }
}

/// Chooses ports for the whole mesh at once: agents that each chose for themselves would now and then choose
/// the same one before either listens there.
#[derive(Default)]
struct Ports(BTreeSet<SocketAddr>);

impl Ports {
    fn choose(&mut self, key: &'static str) -> Result<SocketAddr, BrokerError> {
        loop {
            let address = broker::claim(key, SocketAddr::from(([127, 0, 0, 1], 0)))?;
            if self.0.insert(address) {
                return Ok(address);
            }
        }
    }
}

fn base_config(
    path: &Path,
    paths: &[Path],
    leaf_ports: &BTreeMap<Path, SocketAddr>,
    [nats, monitor]: [SocketAddr; 2],
) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "level = \"{}\"\npath = \"{path}\"\ntrust_domain = \"lucent.dev\"", path.level());
    text.push_str("state_dir = \"state\"\n");
    text.push_str("\n[identity]\ncert = \"identity/svid.pem\"\nkey = \"identity/svid.key\"\nbundle = \"identity/bundle.pem\"\n");
    let _ = writeln!(text, "\n[nats]\nlisten = \"{nats}\"\nmonitor = \"{monitor}\"\nmax_file = \"2GiB\"");
    text.push_str("\n[http]\nlisten = \"127.0.0.1:0\"\n");
    text.push_str("\n[telemetry]\ninterval = \"2s\"\nwindow = \"5s\"\n");
    if let Some(listen) = leaf_ports.get(path) {
        let children: Vec<String> = paths
            .iter()
            .filter(|child| child.parent().as_ref() == Some(path))
            .map(|child| format!("\"{}\"", child.id()))
            .collect();
        let _ = writeln!(text, "\n[leaf]\nlisten = \"{listen}\"\nchildren = [{}]", children.join(", "));
    }
    if let Some(address) = path.parent().and_then(|parent| leaf_ports.get(&parent).copied()) {
        let _ = writeln!(text, "\n[parent]\naddresses = [\"{address}\"]");
    }
    text
}
