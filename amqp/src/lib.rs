//! AMQP 1.0, sans-IO, both roles.
