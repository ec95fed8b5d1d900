module laelaps.invalid/tests/clients/go-amqp

go 1.18

require github.com/Azure/go-amqp v1.6.0
