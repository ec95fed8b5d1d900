import io.vertx.amqp.AmqpClient;
import io.vertx.amqp.AmqpClientOptions;
import io.vertx.amqp.AmqpConnection;
import io.vertx.amqp.AmqpMessage;
import io.vertx.amqp.AmqpMessageBuilder;
import io.vertx.amqp.AmqpReceiver;
import io.vertx.amqp.AmqpReceiverOptions;
import io.vertx.amqp.AmqpSender;
import io.vertx.core.Future;
import io.vertx.core.Vertx;
import io.vertx.core.buffer.Buffer;
import io.vertx.core.net.PemTrustOptions;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.apache.qpid.proton.amqp.messaging.AmqpValue;
import org.apache.qpid.proton.amqp.messaging.MessageAnnotations;
import org.apache.qpid.proton.amqp.messaging.Section;

/** The AMQP client of Vert.x on strings: the steps of tests/clients/README.md. */
public final class VertxRemote extends Steps {
    private static final long WITHIN_S = 10;

    private final Vertx vertx = Vertx.vertx();
    private final Map<String, AmqpSender> senders = new HashMap<>();
    private final Map<String, AmqpReceiver> receivers = new HashMap<>();
    private final Map<String, BlockingQueue<AmqpMessage>> came = new HashMap<>();
    private AmqpClient client;
    private AmqpConnection connection;

    public static void main(String[] args) throws Exception {
        new VertxRemote().run();
    }

    @Override
    protected String[] library() {
        return new String[] {"io.vertx", "vertx-amqp-client"};
    }

    private static <T> T wait(Future<T> future) throws Exception {
        return future.toCompletionStage().toCompletableFuture().get(WITHIN_S, TimeUnit.SECONDS);
    }

    @Override
    protected void connect(Where where) throws Exception {
        if (where.failover() != null) {
            throw new Lacks(
                    "`setReconnectAttempts` is about the first connection to one address; after a"
                            + " loss the program makes connection and links anew");
        }
        AmqpClientOptions options = new AmqpClientOptions();
        options.setHost("127.0.0.1").setPort(where.port());
        if (where.idleMs() > 0) {
            options.setHeartbeat(where.idleMs());
        }
        if (where.ca() != null) {
            options.setHost("localhost").setSsl(true).setHostnameVerificationAlgorithm("HTTPS");
            options.setPemTrustOptions(new PemTrustOptions().addCertPath(where.ca()));
        }
        client = AmqpClient.create(vertx, options);
        connection = wait(client.connect());
    }

    @Override
    protected String sender(String name, String to) throws Exception {
        AmqpSender sender = wait(connection.createSender(to));
        senders.put(name, sender);
        return sender.address();
    }

    @Override
    protected String receiver(String name, String from, int credit, boolean copy)
            throws Exception {
        if (copy) {
            throw new Lacks("`AmqpReceiverOptions` has no distribution mode");
        }
        AmqpReceiverOptions options = new AmqpReceiverOptions().setAutoAcknowledgement(false);
        options.setMaxBufferedMessages(Math.max(credit, 1)).setDynamic(from == null);
        AmqpReceiver receiver = wait(connection.createReceiver(from, options));
        BlockingQueue<AmqpMessage> queue = new LinkedBlockingQueue<>();
        receivers.put(name, receiver);
        came.put(name, queue);
        if (credit > 0) {
            receiver.handler(queue::add);
        }
        return receiver.address();
    }

    @Override
    protected String send(String name, Outgoing outgoing, long withinMs) throws Exception {
        AmqpMessageBuilder message = AmqpMessage.create().durable(outgoing.durable());
        if (outgoing.text() != null) {
            message.withBody(outgoing.text());
        } else {
            message.withBufferAsBody(Buffer.buffer(outgoing.body()));
        }
        if (outgoing.replyTo() != null) {
            message.replyTo(outgoing.replyTo());
        }
        if (outgoing.correlation() != null) {
            message.correlationId(outgoing.correlation());
        }
        // It fails for any outcome but `accepted`.
        wait(senders.get(name).sendWithAck(message.build()));
        return "accepted";
    }

    @Override
    protected Incoming next(String name, long withinMs) throws InterruptedException {
        AmqpMessage message = came.get(name).poll(withinMs, TimeUnit.MILLISECONDS);
        if (message == null) {
            return null;
        }
        Section body = message.unwrap().getBody();
        boolean isText = body instanceof AmqpValue value && value.getValue() instanceof String;
        return new Incoming(
                isText ? message.bodyAsString() : null,
                isText ? null : message.bodyAsBinary().getBytes(),
                message.replyTo(),
                message.correlationId(),
                annotations(message.unwrap().getMessageAnnotations()),
                message);
    }

    /** The client's own messages show no annotations, the Proton-J ones below them do. */
    private static Map<String, String> annotations(MessageAnnotations section) {
        Map<String, String> annotations = new TreeMap<>();
        if (section != null) {
            section.getValue()
                    .forEach((key, value) -> annotations.put(key.toString(), "" + value));
        }
        return annotations;
    }

    @Override
    protected void settle(Object delivery, String outcome) {
        AmqpMessage message = (AmqpMessage) delivery;
        switch (outcome) {
            case "accepted" -> message.accepted();
            case "released" -> message.released();
            case "rejected" -> message.rejected();
            default -> throw new IllegalArgumentException(outcome);
        }
    }

    @Override
    protected void drain(String name, int credit) throws Lacks {
        throw new Lacks("`AmqpReceiver` has no drain (`ProtonReceiver` of vertx-proton has)");
    }

    @Override
    protected void detach(String name) throws Exception {
        wait(senders.containsKey(name) ? senders.remove(name).close()
                : receivers.remove(name).close());
    }

    @Override
    protected void close() throws Exception {
        if (client != null) {
            if (connection != null && !connection.isDisconnected()) {
                wait(connection.close());
            }
            wait(client.close());
        }
        client = null;
        connection = null;
        senders.clear();
        receivers.clear();
        came.clear();
    }

    @Override
    protected boolean isOpen() {
        return !connection.isDisconnected();
    }
}
