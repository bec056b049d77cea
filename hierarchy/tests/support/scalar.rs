//! Just enough arithmetic modulo the order of Ed25519's group to make signatures that an honest
//! signer never makes. Numbers are 32 bytes, little endian.

/// The group's order: 2^252 + 27742317777372353535851937790883648493.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// `number + ORDER`, unreduced: the second spelling of a signature's S.
pub(crate) fn plus_order(number: [u8; 32]) -> [u8; 32] {
    let mut carry = 0;
    std::array::from_fn(|i| {
        let sum = u16::from(number[i]) + u16::from(ORDER[i]) + carry;
        carry = sum >> 8;
        sum as u8
    })
}

/// The product of two numbers of any width, reduced.
pub(crate) fn product(left: &[u8], right: &[u8]) -> [u8; 32] {
    let right = horner(right, one());
    horner(left, right)
}

/// The sum of `unit` over the bits of `number`, most significant first.
fn horner(number: &[u8], unit: [u8; 32]) -> [u8; 32] {
    let mut sum = [0; 32];
    for bit in (0..number.len() * 8).rev() {
        sum = add(sum, sum);
        if number[bit / 8] >> (bit % 8) & 1 == 1 {
            sum = add(sum, unit);
        }
    }
    sum
}

fn one() -> [u8; 32] {
    let mut one = [0; 32];
    one[0] = 1;
    one
}

/// The reduced sum of two reduced numbers; both are below 2^253, so nothing overflows.
fn add(left: [u8; 32], right: [u8; 32]) -> [u8; 32] {
    let mut carry = 0;
    let sum: [u8; 32] = std::array::from_fn(|i| {
        let sum = u16::from(left[i]) + u16::from(right[i]) + carry;
        carry = sum >> 8;
        sum as u8
    });
    if sum.iter().rev().cmp(ORDER.iter().rev()).is_lt() {
        return sum;
    }
    let mut borrow = 0;
    std::array::from_fn(|i| {
        let difference = i16::from(sum[i]) - i16::from(ORDER[i]) - borrow;
        borrow = i16::from(difference < 0);
        difference as u8
    })
}
