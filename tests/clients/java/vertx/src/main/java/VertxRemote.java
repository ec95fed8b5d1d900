import io.vertx.amqp.AmqpClient;
import io.vertx.amqp.AmqpClientOptions;
import io.vertx.amqp.AmqpConnection;
import io.vertx.amqp.AmqpMessage;
import io.vertx.amqp.AmqpMessageBuilder;
import io.vertx.amqp.AmqpReceiver;
import io.vertx.amqp.AmqpReceiverOptions;
import io.vertx.amqp.AmqpSender;
import io.vertx.core.Context;
import io.vertx.core.Future;
import io.vertx.core.Promise;
import io.vertx.core.Vertx;
import io.vertx.core.buffer.Buffer;
import io.vertx.core.net.PemTrustOptions;
import io.vertx.proton.ProtonDelivery;
import io.vertx.proton.ProtonHelper;
import io.vertx.proton.ProtonReceiver;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import org.apache.qpid.proton.amqp.Symbol;
import org.apache.qpid.proton.amqp.messaging.AmqpValue;
import org.apache.qpid.proton.amqp.messaging.Data;
import org.apache.qpid.proton.amqp.messaging.MessageAnnotations;
import org.apache.qpid.proton.amqp.messaging.Section;
import org.apache.qpid.proton.amqp.messaging.Source;
import org.apache.qpid.proton.message.Message;

/**
 * The AMQP client of Vert.x on strings: the steps of tests/clients/README.md.
 *
 * <p>It has no browsing and no drain; the ProtonConnection below it, which it hands out, has both.
 */
public final class VertxRemote extends Steps {
    private static final long WITHIN_S = 10;
    private static final String UNWRAPPED =
            "`AmqpReceiver` has none: the program takes a `ProtonReceiver` from"
                    + " `AmqpConnection.unwrap()`";

    /** How what came is settled. */
    private interface Settling {
        void as(String outcome) throws Exception;
    }

    /** What came, by either kind of receiver. */
    private record Came(Message message, Settling settling) {}

    private final Vertx vertx = Vertx.vertx();
    /** The event loop that the connection runs on; what is unwrapped is used there only. */
    private final Context loop = vertx.getOrCreateContext();
    private final Map<String, AmqpSender> senders = new HashMap<>();
    private final Map<String, AmqpReceiver> receivers = new HashMap<>();
    private final Map<String, ProtonReceiver> unwrapped = new HashMap<>();
    private final Map<String, BlockingQueue<Came>> came = new HashMap<>();
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

    /** Does something on the connection's event loop and waits until it says what it gave. */
    private <T> T onLoop(Consumer<Promise<T>> what) throws Exception {
        Promise<T> done = Promise.promise();
        loop.runOnContext(
                nothing -> {
                    try {
                        what.accept(done);
                    } catch (RuntimeException failure) {
                        done.tryFail(failure);
                    }
                });
        return wait(done.future());
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
        connection = onLoop(done -> client.connect().onComplete(done));
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
        // Credit by hand is for a drain.
        if (copy || credit == 0) {
            return unwrappedReceiver(name, from, credit, copy);
        }
        AmqpReceiverOptions options = new AmqpReceiverOptions().setAutoAcknowledgement(false);
        options.setMaxBufferedMessages(Math.max(credit, 1)).setDynamic(from == null);
        AmqpReceiver receiver = wait(connection.createReceiver(from, options));
        BlockingQueue<Came> queue = new LinkedBlockingQueue<>();
        receivers.put(name, receiver);
        came.put(name, queue);
        receiver.handler(
                message -> queue.add(new Came(message.unwrap(), to -> settle(message, to))));
        return receiver.address();
    }

    private String unwrappedReceiver(String name, String from, int credit, boolean copy)
            throws Exception {
        note(UNWRAPPED);
        BlockingQueue<Came> queue = new LinkedBlockingQueue<>();
        ProtonReceiver opened =
                onLoop(
                        done -> {
                            ProtonReceiver receiver = connection.unwrap().createReceiver(from);
                            if (copy) {
                                ((Source) receiver.getSource())
                                        .setDistributionMode(Symbol.valueOf("copy"));
                            }
                            receiver.setPrefetch(0).setAutoAccept(false);
                            receiver.handler(
                                    (delivery, message) -> {
                                        Settling settling = to -> settle(delivery, to);
                                        queue.add(new Came(message, settling));
                                    });
                            receiver.openHandler(done);
                            receiver.open();
                            if (credit > 0) {
                                receiver.flow(credit);
                            }
                        });
        unwrapped.put(name, opened);
        came.put(name, queue);
        return opened.getRemoteSource().getAddress();
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
        Came next = came.get(name).poll(withinMs, TimeUnit.MILLISECONDS);
        if (next == null) {
            return null;
        }
        Message message = next.message();
        Section body = message.getBody();
        Object value = body instanceof AmqpValue whole ? whole.getValue() : null;
        Object correlation = message.getCorrelationId();
        return new Incoming(
                value instanceof String text ? text : null,
                body instanceof Data data ? bytes(data) : null,
                message.getReplyTo(),
                correlation == null ? null : correlation.toString(),
                annotations(message.getMessageAnnotations()),
                next.settling());
    }

    private static byte[] bytes(Data data) {
        byte[] bytes = new byte[data.getValue().getLength()];
        data.getValue().asByteBuffer().get(bytes);
        return bytes;
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
    protected void settle(Object delivery, String outcome) throws Exception {
        ((Settling) delivery).as(outcome);
    }

    private static void settle(AmqpMessage message, String outcome) {
        switch (outcome) {
            case "accepted" -> message.accepted();
            case "released" -> message.released();
            case "rejected" -> message.rejected();
            default -> throw new IllegalArgumentException(outcome);
        }
    }

    private void settle(ProtonDelivery delivery, String outcome) throws Exception {
        onLoop(
                done -> {
                    switch (outcome) {
                        case "accepted" -> ProtonHelper.accepted(delivery, true);
                        case "released" -> ProtonHelper.released(delivery, true);
                        case "rejected" -> ProtonHelper.rejected(delivery, true);
                        default -> throw new IllegalArgumentException(outcome);
                    }
                    done.complete();
                });
    }

    @Override
    protected void drain(String name, int credit) throws Exception {
        note(UNWRAPPED);
        // `drain` takes back what was given before it and says when it is done.
        onLoop(
                done -> {
                    ProtonReceiver receiver = unwrapped.get(name);
                    receiver.flow(credit);
                    receiver.drain(WITHIN_S * 1000, gone -> done.handle(gone.mapEmpty()));
                });
    }

    @Override
    protected void detach(String name) throws Exception {
        ProtonReceiver receiver = unwrapped.remove(name);
        if (receiver != null) {
            onLoop(
                    done -> {
                        receiver.closeHandler(gone -> done.handle(gone.mapEmpty()));
                        receiver.close();
                    });
            return;
        }
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
        unwrapped.clear();
        came.clear();
    }

    @Override
    protected boolean isOpen() {
        return !connection.isDisconnected();
    }
}
