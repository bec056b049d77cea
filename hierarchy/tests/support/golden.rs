//! Bytes that must never change while the version does not: one envelope, one batch, one frame.

use hierarchy::{
    Lane,
    envelope::Draft,
    link::{ChildMessage, PackLimits, Parcel, ParcelHead},
};

use super::{
    batch_cases,
    world::{World, draft, raw, seal_pack},
};

/// The files by name. The same world gives the same bytes.
pub(crate) fn all(world: &World) -> Vec<(&'static str, Vec<u8>)> {
    let (signer, payload) = (world.signer("n1"), raw(r#"{"pair":"ETH-USDC","price":2847.52}"#));
    let envelope = signer.seal(&Draft {
        correlation_id: Some("0198f3a0-0000-7000-8000-000000000001"),
        causation_id: Some("0198f3a0-0000-7000-8000-000000000002"),
        message_type: "PriceUpdatedEvent",
        reply_to: Some("lucent.responses.pricing.17"),
        priority: Lane::Critical,
        ..draft("lucent.hierarchy.node.n1.prices", &payload)
    });

    let mut packer = batch_cases::packer(PackLimits::default());
    let telemetry = "lucent.hierarchy.node.n1.agent.telemetry";
    let next = batch_cases::numbered(5, telemetry, b"{}");
    let events = [batch_cases::base_events(), vec![next]].concat();
    let mut packs: Vec<_> = events.iter().flat_map(|event| batch_cases::push(&mut packer, event)).collect();
    packs.extend(packer.close());
    let [batch, next] = [0, 1].map(|index| seal_pack(&signer, &packs[index]));

    let parcels: Vec<ParcelHead> = [(0, 4, &batch), (4, 5, &next)]
        .map(|(after, last, sealed)| {
            let (bytes, digest) = (sealed.bytes.clone(), sealed.digest);
            ParcelHead::from(&Parcel { after, last, bytes, digest, kid: signer.kid() })
        })
        .into();
    let (lane, bindings) = (Lane::Normal, vec![signer.binding().clone()]);
    let message = ChildMessage::Frame { session: 17, lane, bindings, parcels, last: 5 };
    let payload = raw(&serde_json::to_string(&message).unwrap());
    let head =
        signer.seal(&Draft { message_type: message.kind(), ..draft("lucent.link.up.node.n1", &payload) });
    let frame = [&head.bytes[..], b"\n", &batch.bytes, &next.bytes].concat();
    vec![
        ("golden-envelope.json", envelope.bytes.to_vec()),
        ("golden-batch.json", batch.bytes.to_vec()),
        ("frame.bin", frame),
    ]
}
