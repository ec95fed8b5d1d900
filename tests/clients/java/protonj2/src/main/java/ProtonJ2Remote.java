import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.concurrent.TimeUnit;
import org.apache.qpid.protonj2.client.Client;
import org.apache.qpid.protonj2.client.Connection;
import org.apache.qpid.protonj2.client.ConnectionOptions;
import org.apache.qpid.protonj2.client.Delivery;
import org.apache.qpid.protonj2.client.DistributionMode;
import org.apache.qpid.protonj2.client.Link;
import org.apache.qpid.protonj2.client.Message;
import org.apache.qpid.protonj2.client.Receiver;
import org.apache.qpid.protonj2.client.ReceiverOptions;
import org.apache.qpid.protonj2.client.Sender;
import org.apache.qpid.protonj2.client.Tracker;
import org.apache.qpid.protonj2.client.exceptions.ClientException;

/** protonj2 on strings: the steps of tests/clients/README.md. */
public final class ProtonJ2Remote extends Steps {
    private final Client client = Client.create();
    private final Map<String, Sender> senders = new HashMap<>();
    private final Map<String, Receiver> receivers = new HashMap<>();
    private Connection connection;
    private volatile boolean gone;

    public static void main(String[] args) throws Exception {
        new ProtonJ2Remote().run();
    }

    @Override
    protected String[] library() {
        return new String[] {"org.apache.qpid", "protonj2-client"};
    }

    @Override
    protected void connect(Where where) throws Exception {
        gone = false;
        ConnectionOptions options = new ConnectionOptions();
        options.disconnectedHandler((which, event) -> gone = true);
        String host = "127.0.0.1";
        if (where.idleMs() > 0) {
            options.idleTimeout(where.idleMs());
        }
        if (where.ca() != null) {
            host = "localhost";
            options.sslOptions()
                    .sslEnabled(true)
                    .trustStoreLocation(trustStore(where.ca()).toString())
                    .trustStorePassword(TRUST_PASSWORD)
                    .trustStoreType("PKCS12");
        }
        if (where.failover() != null) {
            List<String> ports = where.failover();
            options.reconnectOptions().reconnectEnabled(true).maxReconnectDelay(1000);
            for (String port : ports.subList(1, ports.size())) {
                options.reconnectOptions().addReconnectLocation(host, Integer.parseInt(port));
            }
        }
        connection = client.connect(host, where.port(), options);
        connection.openFuture().get();
    }

    @Override
    protected String sender(String name, String to) throws Exception {
        Sender sender = connection.openSender(to);
        sender.openFuture().get();
        senders.put(name, sender);
        return sender.address();
    }

    @Override
    protected String receiver(String name, String from, int credit, boolean copy)
            throws Exception {
        ReceiverOptions options = new ReceiverOptions().autoAccept(false).creditWindow(0);
        if (copy) {
            options.sourceOptions().distributionMode(DistributionMode.COPY);
        }
        Receiver receiver =
                from == null
                        ? connection.openDynamicReceiver(options)
                        : connection.openReceiver(from, options);
        receiver.openFuture().get();
        if (credit > 0) {
            receiver.addCredit(credit);
        }
        receivers.put(name, receiver);
        return receiver.address();
    }

    @Override
    protected String send(String name, Outgoing outgoing, long withinMs) throws Exception {
        Message<?> message =
                outgoing.text() != null
                        ? Message.create(outgoing.text())
                        : Message.create(outgoing.body());
        message.durable(outgoing.durable());
        if (outgoing.replyTo() != null) {
            message.replyTo(outgoing.replyTo());
        }
        if (outgoing.correlation() != null) {
            message.correlationId(outgoing.correlation());
        }
        Tracker tracker = senders.get(name).send(message);
        tracker.settlementFuture().get(withinMs, TimeUnit.MILLISECONDS);
        return tracker.remoteState().getType().name().toLowerCase();
    }

    @Override
    protected Incoming next(String name, long withinMs) throws ClientException {
        Delivery delivery = receivers.get(name).receive(withinMs, TimeUnit.MILLISECONDS);
        if (delivery == null) {
            return null;
        }
        Message<Object> message = delivery.message();
        Map<String, String> annotations = new TreeMap<>();
        if (message.hasAnnotations()) {
            message.forEachAnnotation((key, value) -> annotations.put(key, String.valueOf(value)));
        }
        Object body = message.body();
        Object correlation = message.correlationId();
        return new Incoming(
                body instanceof String ? (String) body : null,
                body instanceof byte[] ? (byte[]) body : null,
                message.replyTo(),
                correlation == null ? null : correlation.toString(),
                annotations,
                delivery);
    }

    @Override
    protected void settle(Object which, String outcome) throws ClientException {
        Delivery delivery = (Delivery) which;
        switch (outcome) {
            case "accepted" -> delivery.accept();
            case "released" -> delivery.release();
            case "rejected" -> delivery.reject("test:bad", "the test says so");
            default -> throw new IllegalArgumentException(outcome);
        }
    }

    @Override
    protected void drain(String name, int credit) throws Exception {
        Receiver receiver = receivers.get(name);
        receiver.addCredit(credit);
        receiver.drain().get(10, TimeUnit.SECONDS);
    }

    @Override
    protected void detach(String name) throws Exception {
        Link<?> link = senders.containsKey(name) ? senders.remove(name) : receivers.remove(name);
        link.closeAsync().get();
    }

    @Override
    protected void close() throws Exception {
        if (connection != null) {
            connection.closeAsync().get();
            connection = null;
        }
        senders.clear();
        receivers.clear();
    }

    @Override
    protected boolean isOpen() {
        return !gone;
    }
}
