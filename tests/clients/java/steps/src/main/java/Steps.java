import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Properties;

/**
 * A client on strings: each line of standard input is a step, each line printed its answer.
 *
 * <p>The steps are described in tests/clients/README.md. A library's program says here how it does
 * each of them; this class reads and prints.
 */
public abstract class Steps {
    /** Where to connect and how; the list has ports of this machine, or `host:port`. */
    public record Where(int port, String ca, int idleMs, List<String> failover, int prefetch) {}

    /** A message to send: a text, or bytes; to be delivered so much later, where a library can. */
    public record Outgoing(
            String text,
            byte[] body,
            boolean durable,
            String replyTo,
            String correlation,
            long delayMs) {}

    /** A message that came; annotations are null where the library shows none. */
    public record Incoming(
            String text,
            byte[] body,
            String replyTo,
            String correlation,
            Map<String, String> annotations,
            Object delivery) {}

    /** What a library has no way to ask for. */
    public static final class Lacks extends Exception {
        private static final long serialVersionUID = 1;

        public Lacks(String reason) {
            super(reason);
        }
    }

    /** The password of every trust store here: it guards a public certificate. */
    public static final String TRUST_PASSWORD = "public";

    private final Map<String, Object> deliveries = new HashMap<>();
    private String note;

    /** Group and artifact, whose version is asked for. */
    protected abstract String[] library();

    protected abstract void connect(Where where) throws Exception;

    /** Opens a link; its address. */
    protected abstract String sender(String name, String to) throws Exception;

    /** Opens a link, to a queue of its own where {@code from} is null; its address. */
    protected abstract String receiver(String name, String from, int credit, boolean copy)
            throws Exception;

    /** Sends and waits: the outcome. */
    protected abstract String send(String name, Outgoing message, long withinMs) throws Exception;

    /** The next message, or null. */
    protected abstract Incoming next(String name, long withinMs) throws Exception;

    protected abstract void settle(Object delivery, String outcome) throws Exception;

    /** Gives that much credit and takes it back. */
    protected abstract void drain(String name, int credit) throws Exception;

    protected abstract void detach(String name) throws Exception;

    protected abstract void close() throws Exception;

    /** Whether the library believes to be connected. */
    protected abstract boolean isOpen();

    /** Why no annotations can be seen, or null. */
    protected String annotationsHidden() {
        return null;
    }

    /** There is something to know of how this step is done. */
    protected final void note(String what) {
        note = what;
    }

    /** A trust store of the kind that Java reads, beside a certificate in PEM. */
    public static Path trustStore(String ca) throws Exception {
        Path path = Path.of(ca + ".p12");
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        try (InputStream pem = new FileInputStream(ca)) {
            store.setCertificateEntry(
                    "ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        try (OutputStream out = new FileOutputStream(path.toFile())) {
            store.store(out, TRUST_PASSWORD.toCharArray());
        }
        return path;
    }

    /** Until standard input ends. */
    protected final void run() throws IOException {
        BufferedReader in =
                new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JsonObject answer;
            try {
                answer = answer(JsonParser.parseString(line).getAsJsonObject());
            } catch (Lacks lacks) {
                answer = new JsonObject();
                answer.addProperty("lacks", lacks.getMessage());
            } catch (Exception failure) {
                JsonObject error = new JsonObject();
                error.addProperty("condition", "none");
                error.addProperty("description", String.valueOf(failure));
                answer = new JsonObject();
                answer.add("error", error);
            }
            out.println(answer);
            out.flush();
        }
        // A library may have threads that would keep the process.
        Runtime.getRuntime().halt(0);
    }

    private JsonObject answer(JsonObject step) throws Exception {
        JsonObject answer = new JsonObject();
        String name = text(step, "name");
        note = null;
        int withinMs = number(step, "within_ms", 10_000);
        switch (step.get("do").getAsString()) {
            case "about" -> answer.addProperty("version", version());
            case "connect" -> {
                close();
                connect(where(step));
            }
            case "sender" -> answer.addProperty("address", sender(name, text(step, "to")));
            case "receiver" -> {
                String from = is(step, "dynamic") ? null : text(step, "from");
                int credit = number(step, "credit", 0);
                answer.addProperty("address", receiver(name, from, credit, is(step, "copy")));
            }
            case "send" -> answer.addProperty("state", send(name, outgoing(step), withinMs));
            case "take" -> answer.add("messages", take(name, number(step, "count", 1), withinMs));
            case "settle" -> settle(deliveries.get(text(step, "delivery")), text(step, "outcome"));
            case "drain" -> {
                drain(name, number(step, "credit", 0));
                answer.addProperty("done", true);
            }
            case "detach" -> {
                detach(name);
                answer.addProperty("answered", true);
            }
            case "close" -> {
                close();
                answer.addProperty("answered", true);
            }
            case "idle" -> {
                Thread.sleep(number(step, "ms", 0));
                answer.addProperty("open", isOpen());
            }
            default -> throw new IllegalArgumentException("no such step: " + step.get("do"));
        }
        if (note != null) {
            answer.addProperty("note", note);
        }
        return answer;
    }

    private JsonArray take(String name, int count, long withinMs) throws Exception {
        long deadline = System.nanoTime() + withinMs * 1_000_000;
        JsonArray messages = new JsonArray();
        while (messages.size() < count) {
            long leftMs = (deadline - System.nanoTime()) / 1_000_000;
            Incoming message = leftMs > 0 ? next(name, leftMs) : null;
            if (message == null) {
                break;
            }
            deliveries.put(name + ":" + messages.size(), message.delivery);
            messages.add(shown(message));
        }
        return messages;
    }

    private JsonObject shown(Incoming message) {
        JsonObject shown = new JsonObject();
        if (message.text != null) {
            shown.addProperty("text", message.text);
        } else {
            shown.addProperty("body", HexFormat.of().formatHex(message.body));
        }
        shown.addProperty("reply_to", message.replyTo);
        shown.addProperty("correlation", message.correlation);
        if (annotationsHidden() != null) {
            shown.addProperty("annotations_hidden", annotationsHidden());
        } else {
            JsonObject annotations = new JsonObject();
            message.annotations.forEach(annotations::addProperty);
            shown.add("annotations", annotations);
        }
        return shown;
    }

    private static Where where(JsonObject step) {
        List<String> failover = null;
        if (step.has("failover")) {
            failover =
                    step.getAsJsonArray("failover").asList().stream()
                            .map(JsonElement::getAsString)
                            .toList();
        }
        return new Where(
                number(step, "port", 0),
                text(step, "tls_ca"),
                number(step, "idle_ms", 0),
                failover,
                number(step, "prefetch", -1));
    }

    private static Outgoing outgoing(JsonObject step) {
        String body = text(step, "body");
        return new Outgoing(
                text(step, "text"),
                body == null ? null : HexFormat.of().parseHex(body),
                is(step, "durable"),
                text(step, "reply_to"),
                text(step, "correlation"),
                number(step, "delay_ms", 0));
    }

    private String version() throws IOException {
        String path = "/META-INF/maven/" + String.join("/", library()) + "/pom.properties";
        Properties properties = new Properties();
        try (InputStream in = Steps.class.getResourceAsStream(path)) {
            properties.load(in);
        }
        return properties.getProperty("version");
    }

    private static String text(JsonObject step, String name) {
        JsonElement value = step.get(name);
        return value == null || value.isJsonNull() ? null : value.getAsString();
    }

    private static int number(JsonObject step, String name, int otherwise) {
        return step.has(name) ? step.get(name).getAsInt() : otherwise;
    }

    private static boolean is(JsonObject step, String name) {
        return step.has(name) && step.get(name).getAsBoolean();
    }
}
