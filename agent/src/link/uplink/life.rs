//! The incarnations of this level's lanes: places of different ones are never compared.

use async_nats::jetstream::{self, kv};
use hierarchy::{ByLane, Lane};
use nats_config::streams::lane_stream;
use serde::{Deserialize, Serialize};

use super::{UplinkError, store_error};
use crate::{broker::streams, clock};

/// The key of [`Lives`] in the link's bucket.
const KEY: &str = "life";

/// One incarnation of a lane's stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Life {
    /// Its number; grows.
    pub(super) incarnation: u64,
    /// The place after which it begins.
    pub(super) start: u64,
    /// See [`streams::born`] of the stream that it is an incarnation of.
    born: u64,
}

/// The incarnations of all lanes, as the link's bucket keeps them.
pub(super) struct Lives {
    bucket: kv::Store,
    lives: ByLane<Life>,
}

impl Lives {
    /// As they were noted, or new ones where a stream is not the one that was noted.
    pub(super) async fn open(js: &jetstream::Context, bucket: kv::Store) -> Result<Lives, UplinkError> {
        let noted = bucket.get(KEY).await.map_err(store_error("read"))?;
        let noted: Option<ByLane<Life>> = noted.and_then(|text| serde_json::from_slice(&text).ok());
        let mut born = ByLane::<u64>::default();
        for lane in Lane::ALL {
            let stream = js.get_stream(lane_stream(lane)).await.map_err(store_error("read"))?;
            born[lane] = streams::born(stream.cached_info());
        }
        let lives = born.map(|lane, &born| match noted {
            Some(noted) if noted[lane].born == born => noted[lane],
            _ => Life { incarnation: born, start: 0, born },
        });
        let opened = Lives { bucket, lives };
        if noted != Some(lives) {
            opened.keep().await?;
        }
        Ok(opened)
    }

    pub(super) fn of(&self, lane: Lane) -> Life {
        self.lives[lane]
    }

    /// A new incarnation of a lane begins after `start`.
    pub(super) async fn begin(&mut self, lane: Lane, start: u64) -> Result<(), UplinkError> {
        let life = &mut self.lives[lane];
        (life.incarnation, life.start) = (clock::wall().0.max(life.incarnation + 1), start);
        self.keep().await
    }

    async fn keep(&self) -> Result<(), UplinkError> {
        let text = serde_json::to_vec(&self.lives).map_err(store_error("written"))?;
        self.bucket.put(KEY, text.into()).await.map_err(store_error("written"))?;
        Ok(())
    }
}
