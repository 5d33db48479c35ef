//! Orders: given to the tracker that knows who holds the blob, and heard from all.

use std::sync::Arc;

use lapwing_p2p::digest::Digest;
use lapwing_p2p::discovery::{DiscoveryError, Order, OrderRequest, OrderStand};
use tokio::sync::{Mutex, mpsc};

use super::link::Link;
use super::{Shared, TrackerClient};
use crate::limits::{FIND_HEDGE, MAX_HEARD_ORDERS, MAX_ORDERS, MAX_ORDERS_PER_ANSWER};
use crate::proto;
use crate::registry::Registration;
use crate::seed::shortened;
use crate::wire;

/// Answers that are asked for in a row: as many as hold all orders that can stand. The tracker is told other things between.
const MAX_ANSWERS: usize = MAX_ORDERS / MAX_ORDERS_PER_ANSWER;

/// What trackers told and nobody has begun with.
pub(super) struct Heard {
    sender: mpsc::Sender<Order>,
    receiver: Mutex<mpsc::Receiver<Order>>,
}

impl Default for Heard {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_HEARD_ORDERS);
        Self { sender, receiver: Mutex::new(receiver) }
    }
}

impl Heard {
    pub(super) async fn next(&self) -> Order {
        match self.receiver.lock().await.recv().await {
            Some(order) => order,
            // The sender is here.
            None => std::future::pending().await,
        }
    }
}

/// What a node knows of one tracker's orders.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct KnownOrders {
    registration: Registration,
    reaches: u64,
    latest: u64,
}

impl KnownOrders {
    /// A reply says which order is the latest. Numbers of another registration mean nothing.
    pub(super) fn told(&mut self, registration: Registration, latest: u64) {
        if self.registration != registration {
            *self = Self { registration, ..Self::default() };
        }
        self.latest = latest;
    }

    /// The number after which there are others.
    pub(super) const fn after(&self) -> Option<u64> {
        if self.latest > self.reaches { Some(self.reaches) } else { None }
    }

    /// False if the answer belongs to another registration, of which the next sign of life says how far it is.
    fn heard(&mut self, registration: Registration, reaches: u64) -> bool {
        let is_its = self.registration == registration;
        if is_its {
            // One that says less than before would be asked without end.
            self.reaches = reaches.max(self.reaches.saturating_add(1));
        }
        is_its
    }
}

impl Link {
    /// Asks for orders that are new, if there are.
    pub(super) async fn hear_orders(&self, shared: &Shared) -> Result<(), DiscoveryError> {
        // A seed is given none, and what finds no room now is heard of the next time.
        for _ in 0..MAX_ANSWERS {
            if shared.config.seed_port != 0 || shared.heard.sender.capacity() < MAX_ORDERS_PER_ANSWER {
                break;
            }
            let after = self.orders().after();
            let Some(after) = after else { break };
            let request = proto::OrdersRequest { caller: Some(shared.caller.clone()), after };
            let call = async { self.client().orders(request).await };
            let reply = self.call(shared.config.deadline, call).await?;
            for message in reply.orders.iter().take(MAX_ORDERS_PER_ANSWER) {
                match wire::order(message) {
                    // There is room for as many.
                    Ok(order) => drop(shared.heard.sender.try_send(order)),
                    Err(reason) => tracing::debug!(tracker = self.tracker, reason, "an order that is none"),
                }
            }
            let is_its = self.orders().heard(reply.registration, reply.reaches);
            self.observe(reply.registration, reply.pause_ms);
            if !is_its {
                break;
            }
        }
        Ok(())
    }
}

impl TrackerClient {
    pub(super) async fn give_order(&self, request: OrderRequest) -> Result<OrderStand, DiscoveryError> {
        let digest = request.order.digest;
        let message = proto::OrderRequest {
            caller: Some(self.shared.caller.clone()),
            blob: Some(wire::ordered_blob(&request.order)),
            job: request.job,
            nodes: request.nodes.unwrap_or(0),
            over: request.over,
        };
        let ask = |link: Arc<Link>| {
            let message = message.clone();
            async move { link.client().order(message).await }
        };
        let spare = Arc::new(|link: Arc<Link>, reply: proto::OrderReply| {
            link.observe(reply.registration, reply.pause_ms);
        });
        let links = self.shared.links().order(&digest);
        let (link, reply) = self.shared.ask(links, FIND_HEDGE, ask, spare).await?;
        link.observe(reply.registration, reply.pause_ms);
        Ok(wire::order_stand(reply))
    }

    pub(super) async fn fail_order(&self, digest: Digest, reason: String) -> Result<(), DiscoveryError> {
        let request = proto::FailOrderRequest {
            caller: Some(self.shared.caller.clone()),
            digest: digest.as_bytes().to_vec(),
            reason: shortened(reason, crate::limits::MAX_ORDER_REASON_BYTES),
        };
        let call = |link: Arc<Link>| {
            let request = request.clone();
            async move {
                let reply = link.client().fail_order(request).await?;
                Ok(reply_of(reply))
            }
        };
        self.shared.tell(call).await
    }
}

fn reply_of(reply: tonic::Response<proto::FailOrderReply>) -> tonic::Response<(Registration, u32)> {
    reply.map(|reply| (reply.registration, reply.pause_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_one_registration() {
        let mut known = KnownOrders::default();
        known.told(7, 0);
        assert_eq!(known.after(), None);
        known.told(7, 3);
        assert_eq!(known.after(), Some(0));
        assert!(known.heard(7, 2));
        assert_eq!(known.after(), Some(2), "there are more");
        assert!(known.heard(7, 3));
        assert_eq!(known.after(), None);
        known.told(8, 2);
        assert_eq!(known.after(), Some(0), "the tracker began anew");
        assert!(!known.heard(7, 2), "it is not asked again before it says who this node is");
        assert_eq!(known.after(), Some(0), "late");
        assert!(known.heard(8, 0));
        assert_eq!(known.after(), Some(1), "one that lies is not asked without end");
    }
}
