//! Whom the agent's signatures name, and the key that makes them.

use hierarchy::{Millis, envelope::Sender, signing::Signer};

use crate::svid::Svid;

pub(super) fn make_signer(svid: &Svid) -> Result<Signer, rustls::Error> {
    let sender = Sender {
        service_id: "lucent-agent".into(),
        instance_id: uuid::Uuid::new_v4().to_string().into(),
        version: crate::VERSION.into(),
        node_id: svid.identity.path.to_string().into(),
    };
    let mut seed = [0; 32];
    rustls::crypto::aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut seed)
        .map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
    let validity: [Millis; 2] = svid.validity;
    Signer::new(svid.identity.clone(), sender, &seed, svid, &svid.chain, validity)
}
