//! Ports for one mesh: of a range that no other test uses at the time, below those that agents choose for
//! themselves and those that the system gives to outgoing connections.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    ops::Range,
};

const ALL: Range<usize> = 10_000..16_000;
const HOST: &str = "127.0.0.1:";

#[derive(Debug)]
pub(crate) struct Ports {
    range: Range<usize>,
    next: usize,
    replaced: BTreeMap<usize, usize>,
}

impl Ports {
    /// Those of one of so many equal parts of the range.
    pub(crate) fn of_place(place: usize, places: usize) -> Ports {
        let size = ALL.len() / places;
        let range = ALL.start + place * size..ALL.start + (place + 1) * size;
        // Not always the same ones first: the mesh before may not be quite gone.
        let next = range.start + uuid::Uuid::new_v4().as_u128() as usize % size;
        Ports { range, next, replaced: BTreeMap::new() }
    }

    /// The text with every loopback port but 0 replaced, the same ones by the same ones.
    pub(crate) fn replace_in(&mut self, text: &str) -> String {
        let mut parts = text.split(HOST);
        let mut replaced = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (port, rest) = part.split_at(part.bytes().take_while(u8::is_ascii_digit).count());
            let port = match port.parse() {
                Ok(0) | Err(_) => port.to_owned(),
                Ok(port) => self.instead_of(port).to_string(),
            };
            replaced.extend([HOST, &port, rest]);
        }
        replaced
    }

    /// A free one, on loopback.
    pub(crate) fn one(&mut self) -> SocketAddr {
        // Port numbers fit.
        SocketAddr::from(([127, 0, 0, 1], self.free() as u16))
    }

    fn instead_of(&mut self, port: usize) -> usize {
        if let Some(port) = self.replaced.get(&port) {
            return *port;
        }
        let free = self.free();
        self.replaced.insert(port, free);
        free
    }

    fn free(&mut self) -> usize {
        for _ in 0..self.range.len() {
            let port = self.next;
            self.next = if port + 1 < self.range.end { port + 1 } else { self.range.start };
            if TcpListener::bind(format!("{HOST}{port}")).is_ok() {
                return port;
            }
        }
        panic!("no port of {:?} is free", self.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_replaced_alike_and_never_given_twice() {
        let mut ports = Ports::of_place(1, 4);
        let text = ports.replace_in("a = \"127.0.0.1:20000\" b = \"127.0.0.1:0\" c = \"127.0.0.1:20001\"");
        let again = ports.replace_in("[\"127.0.0.1:20000\"]");
        let numbers: Vec<usize> =
            text.split(HOST).skip(1).map(|part| part.split('"').next().unwrap().parse().unwrap()).collect();
        assert_eq!((numbers.len(), numbers[1]), (3, 0));
        assert_ne!(numbers[0], numbers[2]);
        assert!((11_500..13_000).contains(&numbers[0]));
        assert_eq!(again, format!("[\"{HOST}{}\"]", numbers[0]));
    }
}
