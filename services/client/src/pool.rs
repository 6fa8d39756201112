//! One connection for each endpoint, dialed when needed and again after it ended.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use crate::conn::{Connection, DialError, Dialer};
use crate::endpoint::Endpoint;

/// How many endpoints are kept; above that, closed ones are forgotten, then any.
const MAX_ENDPOINTS: usize = 1024;

type Slot = Arc<AsyncMutex<Option<Connection>>>;

/// Shared connections. Clones share them.
#[derive(Clone)]
pub struct Pool {
    dialer: Dialer,
    slots: Arc<Mutex<HashMap<Endpoint, Slot>>>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, slots: Arc::default() }
    }

    /// The dialer.
    #[must_use]
    pub const fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// A live connection. Calls for one endpoint at the same time share one dial.
    pub async fn get(&self, endpoint: &Endpoint) -> Result<Connection, DialError> {
        self.get_by(endpoint, async |dialer| dialer.dial(endpoint).await).await
    }

    /// As [`Self::get`], with another way to make a connection.
    pub(crate) async fn get_by<E>(
        &self,
        endpoint: &Endpoint,
        dial: impl AsyncFnOnce(&Dialer) -> Result<Connection, E>,
    ) -> Result<Connection, E> {
        let slot = self.slot(endpoint);
        let mut held = slot.lock().await;
        if let Some(connection) = held.as_ref().filter(|c| !c.is_closed()) {
            return Ok(connection.clone());
        }
        *held = None;
        let connection = dial(&self.dialer).await?;
        *held = Some(connection.clone());
        Ok(connection)
    }

    /// Forgets a connection that turned out to be useless.
    pub fn forget(&self, endpoint: &Endpoint) {
        self.slots.lock().remove(endpoint);
    }

    fn slot(&self, endpoint: &Endpoint) -> Slot {
        let mut slots = self.slots.lock();
        if slots.len() >= MAX_ENDPOINTS && !slots.contains_key(endpoint) {
            slots.retain(|_, slot| {
                slot.try_lock().is_ok_and(|held| held.as_ref().is_some_and(|c| !c.is_closed()))
            });
            if slots.len() >= MAX_ENDPOINTS {
                slots.clear();
            }
        }
        Arc::clone(slots.entry(endpoint.clone()).or_default())
    }
}
