// SPDX-License-Identifier: MPL-2.0

import com.hivemq.embedded.EmbeddedHiveMQ;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;

/** HiveMQ CE, which speaks MQTT 5: anybody may do anything. */
class Broker {
    public static void main(String[] arguments) throws Exception {
        int port;
        try (ServerSocket socket = new ServerSocket(0)) {
            port = socket.getLocalPort();
        }
        Path folder = Files.createTempDirectory("hivemq-");
        for (String name : new String[] {"conf", "data", "extensions"}) {
            Files.createDirectory(folder.resolve(name));
        }
        String listener = "<tcp-listener><port>" + port + "</port><bind-address>127.0.0.1</bind-address></tcp-listener>";
        Files.writeString(
                folder.resolve("conf/config.xml"),
                "<hivemq><listeners>" + listener + "</listeners>"
                        + "<anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics></hivemq>");
        EmbeddedHiveMQ broker = EmbeddedHiveMQ.builder()
                .withConfigurationFolder(folder.resolve("conf"))
                .withDataFolder(folder.resolve("data"))
                .withExtensionsFolder(folder.resolve("extensions"))
                .build();
        broker.start().join();
        System.out.println("port " + port);
        Thread.currentThread().join();
    }
}
